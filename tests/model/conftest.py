"""The profile `long` of Hypothesis, for `make model`."""

from hypothesis import settings

settings.register_profile("long", max_examples=2000)
