"""Where runs become pictures: the comparison report and the live boards."""
