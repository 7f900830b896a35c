"""Vessels: who is fishing, where, now?"""
