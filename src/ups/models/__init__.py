"""Emulators: the latent simulator (codec, linear base, latent operator) and the baselines it is compared with."""
