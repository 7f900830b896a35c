"""A year of flights in which the causes of delays change: the alarm, the retraining, the recovery."""
