"""The page that shows everything, its sentences and captions."""
