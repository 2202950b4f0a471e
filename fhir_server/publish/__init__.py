"""What others are told: rows written with the change they tell of, delivered later."""
