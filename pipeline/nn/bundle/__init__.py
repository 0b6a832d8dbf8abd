"""What a bundle runs beside MONAI. Imports nothing of the project that trained its networks."""
