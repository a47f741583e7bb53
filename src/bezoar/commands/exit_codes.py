"""What a command leaves with."""

OK = 0
FOUND = 1  # or what was asked for is not wholly there
UNUSABLE = 2  # an input, an output, or bezoar itself: there may be no result
