"""The ops, each declared once in the file of its family; ``OPS`` lists the declarations."""

from pyfold.folds import FOLDS, fold_table
from pyfold.ops._call import register_shapes
from pyfold.ops._declare import FLOAT_DTYPES, OPS, Op
from pyfold.ops.fold import fold, fold_with_bits, unfold
from pyfold.ops.kaleidoscope import kaleidoscope
from pyfold.ops.noise import INITIAL_STREAM, SAMPLER_STREAM, TRAINING_STREAM, randn
from pyfold.ops.noising import NOISING_COLUMNS, TARGETS, add_noise, denoising_loss, mse_loss
from pyfold.ops.seeds import seed_of
from pyfold.ops.step import AFFINE_STEP_COLUMNS, affine_step, affine_table

register_shapes()

__all__ = [
    "AFFINE_STEP_COLUMNS",
    "FLOAT_DTYPES",
    "FOLDS",
    "INITIAL_STREAM",
    "NOISING_COLUMNS",
    "OPS",
    "SAMPLER_STREAM",
    "TARGETS",
    "TRAINING_STREAM",
    "Op",
    "add_noise",
    "affine_step",
    "affine_table",
    "denoising_loss",
    "fold",
    "fold_table",
    "fold_with_bits",
    "kaleidoscope",
    "mse_loss",
    "randn",
    "seed_of",
    "unfold",
]
