"""The main job: from a configuration to a smaller model that is measured to be faster."""
