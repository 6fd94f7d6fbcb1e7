"""The feature bank of StreamV2V."""
