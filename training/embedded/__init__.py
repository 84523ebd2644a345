"""What the embedded family needs besides its U-Nets: autoencoder and extractors."""
