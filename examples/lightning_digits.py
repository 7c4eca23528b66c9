"""pyfold's loss in a LightningModule: a seed for each image of each epoch, so runs that resume are the unbroken run.

python examples/lightning_digits.py --out runs/lightning [--resume]
"""

import argparse
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import pyfold
from pyfold import diffusion
from pyfold.models import UNet


class Denoiser(lightning.LightningModule):
    def __init__(self, width: int = 32):
        super().__init__()
        self.model = UNet(1, 8, width, "maxmin")
        self.objective = diffusion.TrainingLoss(diffusion.flow(), "flow", density="logit_normal")

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        x0, index = batch
        noised = self.objective.noise(x0, pyfold.seed_of(0, index, self.current_epoch))
        loss = self.objective(self.model(noised.x_t, noised.t), noised).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), 1e-3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    data = TensorDataset(images, torch.arange(len(images)))
    loader = DataLoader(data, arguments.batch, drop_last=True)
    kept = arguments.out / "digits.ckpt"
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs, logger=False, enable_checkpointing=False, accelerator="auto", log_every_n_steps=1
    )
    trainer.fit(Denoiser(arguments.width), loader, ckpt_path=str(kept) if arguments.resume else None)
    trainer.save_checkpoint(kept)
    print(f"{trainer.global_step} steps, loss {trainer.callback_metrics['loss']:.4f}: {kept}")
