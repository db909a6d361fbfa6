"""What a recipe costs before it is run: the `plan` verb."""
