"""What an evaluation says beyond AP: score thresholds, confusions, counts, and what kinds of errors cost."""
