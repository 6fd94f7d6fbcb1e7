"""The laboratory: what made the bundled model and judges models. The service never imports it."""
