"""Scenes, the embedded benchmark: its world, its pictures, and its M-BEIR tree."""
