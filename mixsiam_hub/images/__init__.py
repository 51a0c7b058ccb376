"""From whatever holds an image to upright pixels."""
