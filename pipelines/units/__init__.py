"""Units: which samples make up each one, in which order sources take turns, and their Ray Dataset."""
