"""The model: autoencoder, denoiser, diffusion, training, evaluation and checkpoints."""

__version__ = "0.1.0"
