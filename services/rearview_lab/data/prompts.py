"""The prompt generator: phrases per style, sentence templates, subjects and suffixes.

Only the style phrase means anything to the model; subjects and suffixes are there so that it learns to
ignore them. A prompt without a style phrase, and the empty prompt, mean natural.
"""

from __future__ import annotations

import numpy as np

from rearview_lab.data.styles import STYLES

# The first phrase of a style is its canonical one.
PHRASES: dict[str, tuple[str, ...]] = {
    "natural": (
        "natural video", "a photograph", "photo", "realistic", "natural light", "unchanged", "real life",
        "original",
    ),
    "pencil": (
        "pencil sketch", "pencil drawing", "graphite sketch", "hand drawn sketch", "charcoal drawing",
        "sketch",
        "drawn in pencil", "black and white drawing", "pencil art", "line drawing",
    ),
    "oil": (
        "oil painting", "oil on canvas", "old master painting", "painted in oil", "baroque painting",
        "thick oil paint",
        "renaissance painting", "classical painting", "impasto",
    ),
    "watercolor": (
        "watercolor painting", "watercolour", "watercolor", "aquarelle", "water color",
        "soft watercolor wash",
        "painted with watercolors", "gouache", "pastel wash",
    ),
    "clay": (
        "claymation", "clay animation", "made of clay", "plasticine", "clay figure", "stop motion clay",
        "clay model",
        "clay", "modelling clay",
    ),
    "neon": (
        "neon lights", "neon glow", "neon outlines", "glowing neon", "neon sign", "neon", "neon style",
        "glowing edges",
        "neon tubes",
    ),
    "cartoon": (
        "cartoon", "comic book", "comic style", "cel shaded", "cartoon style", "animated cartoon",
        "anime", "comic",
        "toon shading", "graphic novel",
    ),
    "ukiyo-e": (
        "ukiyo-e woodblock print", "ukiyo-e", "japanese woodblock", "woodblock print", "hokusai style",
        "japanese print",
        "edo period print", "ukiyo e", "hiroshige style", "woodcut",
    ),
    "cyberpunk": (
        "cyberpunk", "cyberpunk city", "vaporwave", "synthwave", "futuristic cyberpunk",
        "cyberpunk style", "blade runner style",
        "cyberpunk night", "retrowave",
    ),
    "blueprint": (
        "blueprint", "technical blueprint", "blueprint drawing", "architectural blueprint", "cyanotype",
        "engineering drawing",
        "blue print", "construction plan", "technical drawing",
    ),
    "pixel-art": (
        "pixel art", "8-bit game", "mosaic", "8 bit", "retro video game", "pixelated", "pixel style",
        "mosaic tiles",
        "pixels", "16-bit game",
    ),
}  # fmt: skip

TEMPLATES = (
    "{style}", "{style}", "{style}", "a {style} of {subject}", "{style} of {subject}", "{subject}, {style}",
    "{subject} as a {style}", "{subject} in {style} style", "in the style of {style}", "{style} style",
    "turn {subject} into a {style}", "make it look like {style}", "make this a {style} please",
    "{style} portrait of {subject}",
    "{style} version of {subject}", "{subject} {style}", "as {style}", "{style} scene with {subject}",
    "i want {style}",
    "turn this into {style} please",
)  # fmt: skip
BARE_TEMPLATES = (
    "",
    "",
    "",
    "{subject}",
    "a picture of {subject}",
    "{subject} in the video",
    "show {subject}",
    "this is {subject}",
)
SUBJECTS = (
    "a man", "a woman", "a person", "a child", "my friend", "my grandmother", "my face", "an old man",
    "a girl", "a boy",
    "a cat", "a dog", "a horse", "a bird", "a lion", "a robot", "an astronaut", "a rocket", "a hero",
    "a dancer",
    "a street", "a city", "a house", "a castle", "a bridge", "a car", "a bicycle", "a train", "a boat",
    "a room",
    "a kitchen", "an office", "a desk", "a window", "a cup of coffee", "a cup", "a table", "a chair",
    "a bottle", "a book",
    "a forest", "a mountain", "a lake", "the sea", "a beach", "a river", "a garden", "a flower", "a tree",
    "the sky",
    "a sunset", "the moon", "a hand", "two people", "a crowd", "a player", "a musician", "a singer", "me",
    "everything",
    "a man with a hat", "a woman with glasses", "tokyo", "paris", "new york", "the video", "this", "it",
)  # fmt: skip
SUFFIXES = (
    "", "", "", "", "", "", "", "", ", highly detailed", ", beautiful", ", 4k", ", masterpiece",
    ", best quality", ", sharp",
    ", dramatic lighting", ", soft light", ", colorful", ", trending", ", award winning", ", simple",
    ", at night",
    ", in the morning", ", close up", ", wide shot", ", high contrast", ", elegant", ", please", " 2077", "!",
)  # fmt: skip


def canonical_prompt(style: str) -> str:
    """The phrase to put on a button for this style."""
    return PHRASES[style][0]


def sample_prompt(rng: np.random.Generator, style: str) -> str:
    """A random prompt that means ``style``."""
    subject = SUBJECTS[int(rng.integers(len(SUBJECTS)))]
    suffix = SUFFIXES[int(rng.integers(len(SUFFIXES)))]
    if style == "natural" and rng.random() < 0.6:
        prompt = BARE_TEMPLATES[int(rng.integers(len(BARE_TEMPLATES)))].format(subject=subject)
        prompt = prompt + suffix if prompt else prompt
    else:
        phrases = PHRASES[style]
        phrase = phrases[0] if rng.random() < 0.25 else phrases[int(rng.integers(len(phrases)))]
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        prompt = template.format(style=phrase, subject=subject) + suffix
    kind = rng.random()
    return prompt.title() if kind < 0.1 else prompt.upper() if kind < 0.13 else prompt


def prompt_corpus(num_prompts: int = 20_000, seed: int = 0) -> list[str]:
    """Prompts of all styles, lower case, from which the tokenizer learns its merges."""
    rng = np.random.default_rng(seed)
    styles = rng.choice(np.array(STYLES), num_prompts)
    return [sample_prompt(rng, str(style)).lower() for style in styles]
