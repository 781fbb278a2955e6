"""The optimizer beside what people start from, and beside other optimisers."""
