"""The control law and its nouns: pure functions of their arguments, time included."""
