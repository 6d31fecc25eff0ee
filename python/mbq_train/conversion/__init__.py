"""convert: from a float network to one that computes at several bit-widths, and a report of what was done."""
