"""Where the parts of a model lie: blocks of heads, projections, problems; masks, and heads that go for good."""
