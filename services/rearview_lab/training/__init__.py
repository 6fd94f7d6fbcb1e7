"""Everything that makes the bundled pocket checkpoint and the sample clip.

Owns the generated scenes, the deterministic pictures that serve as teachers, the prompt generator, the
architecture, the training loops and the export. Nothing at run time imports this package: it needs OpenCV
and scikit-image (the optional extra ``training``), the server does not.
"""
