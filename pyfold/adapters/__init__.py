"""pyfold under the names and signatures of other libraries. Nothing here is imported by ``import pyfold``."""
