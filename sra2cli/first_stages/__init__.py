"""A first stage of one's own: an AutoencoderKL that is trained on images, measured and written."""
