"""Which shop's customers are unhappy just now? A model elsewhere reads what they write."""

from shared_features import App, EventType, External, Key, Rule, coalesce, count, mean

mood = External("mood", version=3, of="text", fills={"mood": "score"}, recorded="mood_version", timeout_s=30, batch=8)
review = EventType("review", "review.avsc", time="written_at", external=[mood])
by_shop = Key("shop", review.shop)
mood_1h = mean(review.mood, by=by_shop, over="1h")

app = App(
    name="reviews",
    event_types=[review],
    predict_on=review,
    features={"mood": review.mood, "mood_1h": mood_1h, "reviews_1h": count(review.mood, by=by_shop, over="1h")},
    models=[Rule("unhappy", coalesce(1 - mood_1h, 0.5))],
)
