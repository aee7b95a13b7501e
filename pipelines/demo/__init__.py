"""The default data: a part of Fashion-MNIST, kept here, and clips to be seen and heard, rendered when needed."""
