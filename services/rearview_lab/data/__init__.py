"""Scenes, styles, photographs and prompts that models are trained on."""
