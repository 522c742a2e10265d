"""Forward passes of packed and of padded texts."""
