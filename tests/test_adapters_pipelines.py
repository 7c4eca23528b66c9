"""Stable Diffusion and Flux pipelines of random tiny models: pyfold's schedulers in the place of diffusers'."""

import diffusers
import numpy as np
import pytest
import torch

import pyfold.adapters.diffusers as ours

pytest.importorskip("transformers", reason="the pipelines' text encoders come from transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def seeded(build):
    torch.manual_seed(0)
    return build().eval()


def text_encoder():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, projection_dim=16,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config)


def autoencoder():
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, sample_size=8, latent_channels=4, shift_factor=0.1
    )


def embedded(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stable_diffusion():
    """scheduler -> images, of one prompt with guidance; the text is embedded by the encoder itself."""
    unet = seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4,
        )
    )  # fmt: skip
    vae, encoder = seeded(autoencoder), seeded(text_encoder)
    with torch.no_grad():
        prompt, nothing = (encoder(torch.arange(16)[None] % n)[0] for n in (60, 3))

    def run(scheduler):
        pipeline = diffusers.StableDiffusionPipeline(
            vae, encoder, None, unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        assert type(pipeline.scheduler) is type(scheduler)
        return pipeline(
            prompt_embeds=prompt, negative_prompt_embeds=nothing, num_inference_steps=6, guidance_scale=4.0, height=8, width=8,
            generator=torch.Generator().manual_seed(3), output_type="np",
        ).images  # fmt: skip

    return run


@pytest.mark.parametrize(
    "name",
    [
        "PNDMScheduler", "DDIMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "DDPMScheduler", "LCMScheduler",
    ],
)  # fmt: skip
def test_stable_diffusion(name, stable_diffusion):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if name == "PNDMScheduler":
        config["skip_prk_steps"] = True
    expected = stable_diffusion(getattr(diffusers, name)(**config))
    assert expected.std() > 0.01
    np.testing.assert_allclose(stable_diffusion(getattr(ours, name)(**config)), expected, atol=1e-4)


@pytest.mark.parametrize("settings", [{"use_dynamic_shifting": True}, {"shift": 3.0}], ids=str)
def test_flux(settings):
    """The dynamic shift is of the number of tokens, which the pipeline tells the scheduler."""
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        )
    )  # fmt: skip
    vae = seeded(autoencoder)
    images = []
    for module in (diffusers, ours):
        scheduler = module.FlowMatchEulerDiscreteScheduler(**settings)
        pipeline = diffusers.FluxPipeline(scheduler, vae, None, None, None, None, transformer)
        pipeline.set_progress_bar_config(disable=True)
        assert type(pipeline.scheduler) is type(scheduler)
        images.append(
            pipeline(
                prompt_embeds=embedded(1, 1, 6, 16), pooled_prompt_embeds=embedded(2, 1, 16), num_inference_steps=4,
                height=16, width=16, generator=torch.Generator().manual_seed(3), output_type="np",
            ).images
        )  # fmt: skip
    assert images[0].std() > 0.01
    np.testing.assert_allclose(images[1], images[0], atol=1e-4)
