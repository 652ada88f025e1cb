"""What errors offer to users: the nearest names."""

from vovnet.errors import did_you_mean


def test_the_closest_names_are_suggested():
    known = ["base_lr", "batch_size", "steps"]
    assert did_you_mean("bach_size", known) == "did you mean 'batch_size'?"
    assert did_you_mean("step", ["steps", "stops"], most=3) == "did you mean 'steps' or 'stops'?"
    assert did_you_mean("x", known) == ""
    assert did_you_mean("x", known, "see the docs") == "see the docs"
