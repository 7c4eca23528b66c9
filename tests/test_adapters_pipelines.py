"""Stable Diffusion and Flux pipelines of random tiny models: pyfold's schedulers in the place of diffusers'."""

import copy
import json
import pickle

import diffusers
import numpy as np
import pytest
import torch

import pyfold
import pyfold.adapters.diffusers as ours

pytest.importorskip("transformers", reason="the pipelines' text encoders come from transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


def frozen(build):
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
    unet = frozen(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4,
        )
    )  # fmt: skip
    vae, encoder = frozen(autoencoder), frozen(text_encoder)
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


def tiny_flux():
    return frozen(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("settings", [{"use_dynamic_shifting": True}, {"shift": 3.0}], ids=str)
def test_flux(settings):
    """The dynamic shift is of the number of tokens, which the pipeline tells the scheduler."""
    transformer = tiny_flux()
    vae = frozen(autoencoder)
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


# --- seeds


def embedded_prompts(samples, tokens, width, pooled=None):
    """What stands for prompts: the same text for every sample, so that images differ by their seeds alone."""
    given = {"prompt_embeds": embedded(1, 1, tokens, width).expand(samples, -1, -1)}
    if pooled:
        given["pooled_prompt_embeds"] = embedded(2, 1, pooled).expand(samples, -1)
    return given


def tiny_unet(**added):
    return frozen(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, **added,
        )
    )  # fmt: skip


def stable_diffusion_1(scheduler, kind="StableDiffusionPipeline"):
    parts = frozen(autoencoder), frozen(text_encoder), None, tiny_unet(), scheduler
    pipeline = getattr(diffusers, kind)(*parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    nothing = embedded(5, 1, 6, 16)
    return pipeline, lambda n: {
        **embedded_prompts(n, 6, 16), "negative_prompt_embeds": nothing.expand(n, -1, -1), "num_inference_steps": 6,
        "guidance_scale": 3.0,
    }  # fmt: skip


def stable_diffusion_xl(scheduler):
    unet = tiny_unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4
    )
    pipeline = diffusers.StableDiffusionXLPipeline(frozen(autoencoder), None, None, None, None, unet, scheduler)
    return pipeline, lambda n: {**embedded_prompts(n, 6, 16, 16), "num_inference_steps": 4, "guidance_scale": 1.0}


def stable_diffusion_3(scheduler):
    transformer = frozen(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        )
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(transformer, scheduler, frozen(autoencoder), *[None] * 6)
    return pipeline, lambda n: {**embedded_prompts(n, 6, 16, 16), "num_inference_steps": 4, "guidance_scale": 1.0}


def flux(scheduler):
    pipeline = diffusers.FluxPipeline(scheduler, frozen(autoencoder), None, None, None, None, tiny_flux())
    return pipeline, lambda n: {**embedded_prompts(n, 6, 16, 16), "num_inference_steps": 4, "height": 16, "width": 16}


def wan(scheduler):
    vae = frozen(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    )
    transformer = frozen(
        lambda: diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
            freq_dim=32, ffn_dim=16, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
        )
    )  # fmt: skip
    pipeline = diffusers.WanPipeline(None, None, vae, scheduler, transformer)
    return pipeline, lambda n: {
        **embedded_prompts(n, 6, 16), "num_inference_steps": 3, "guidance_scale": 1.0, "height": 16, "width": 16,
        "num_frames": 5,
    }  # fmt: skip


def ltx(scheduler):
    vae = frozen(
        lambda: diffusers.AutoencoderKLLTXVideo(
            in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1, 1, 1, 1),
            timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True, decoder_causal=False,
        )
    )  # fmt: skip
    transformer = frozen(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
            cross_attention_dim=32, num_layers=1, caption_channels=32,
        )
    )  # fmt: skip
    pipeline = diffusers.LTXPipeline(scheduler, vae, None, None, transformer)
    return pipeline, lambda n: {
        **embedded_prompts(n, 6, 32), "prompt_attention_mask": torch.ones(n, 6, dtype=torch.bool), "num_inference_steps": 3,
        "guidance_scale": 1.0, "height": 32, "width": 32, "num_frames": 9,
    }  # fmt: skip


PIPELINES = {
    "Stable Diffusion": (stable_diffusion_1, "EulerAncestralDiscreteScheduler"),
    "Stable Diffusion XL": (stable_diffusion_xl, "DDPMScheduler"),
    "Stable Diffusion 3": (stable_diffusion_3, "FlowMatchEulerDiscreteScheduler"),
    "Flux": (flux, "FlowMatchEulerDiscreteScheduler"),
    "Wan": (wan, "UniPCMultistepScheduler"),
    "LTX": (ltx, "FlowMatchEulerDiscreteScheduler"),
}
OF_FLOW = {"UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}}


def images_of(pipeline, seeds, **given):
    pipeline.set_progress_bar_config(disable=True)
    with ours.seeded(pipeline, seeds) as generator:
        return pipeline(generator=generator, output_type="np", **given)[0]


@pytest.mark.parametrize("module", [ours, diffusers], ids=["pyfold", "diffusers"])
@pytest.mark.parametrize("name", PIPELINES)
def test_an_image_is_a_function_of_its_seed(name, module):
    """Alone, in any batch and any order."""
    build, scheduler = PIPELINES[name]
    pipeline, given = build(getattr(module, scheduler)(**OF_FLOW.get(scheduler, {})))
    four = images_of(pipeline, [7, 8, 9, 10], **given(4))
    two = images_of(pipeline, [10, 8], **given(2))
    one = images_of(pipeline, [9], **given(1))
    # Models may round otherwise in other batches; another seed is another image.
    np.testing.assert_allclose(np.stack([*two, *one]), np.stack([four[3], four[1], four[2]]), atol=1e-4)
    assert np.abs(four[3] - four[1]).max() > 0.01
    assert "prepare_latents" not in vars(pipeline)


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_seeds_of_what_starts_from_an_image(kind):
    """The noise of the image, of its encoder and of the masked image come from its seed as well."""
    pipeline, given = stable_diffusion_1(ours.EulerAncestralDiscreteScheduler(), kind)
    image = embedded(6, 1, 3, 8, 8).tanh()

    def run(seeds):
        n = len(seeds)
        options = {**given(n), "image": image.expand(n, -1, -1, -1), "strength": 0.8}
        if "Inpaint" in kind:
            options |= {"mask_image": torch.ones(n, 1, 8, 8).triu(), "height": 8, "width": 8}
        return images_of(pipeline, seeds, **options)

    four, two = run([7, 8, 9, 10]), run([10, 8])
    np.testing.assert_allclose(two, four[[3, 1]], atol=1e-4)
    assert np.abs(four[3] - four[1]).max() > 0.01


def test_latents_of_seeds():
    """The first draw is the noise that pyfold.randn gives, on every device."""
    pipeline, given = stable_diffusion_1(ours.DDIMScheduler())
    with_helper = images_of(pipeline, [3, 4], **given(2))
    latents = pyfold.randn([3, 4], (4, 8, 8))
    by_hand = pipeline(latents=latents, output_type="np", **given(2))[0]
    np.testing.assert_array_equal(with_helper, by_hand)


def test_seeds_of_any_64_bits():
    """Signed or not, and NumPy's."""
    pipeline, given = stable_diffusion_1(ours.EulerAncestralDiscreteScheduler())
    images = images_of(pipeline, [2**64 - 3, -(2**63), np.uint64(2**63 + 5)], **given(3))
    np.testing.assert_array_equal(images, images_of(pipeline, [-3, 2**63, 5 - 2**63], **given(3)))
    assert np.abs(images[0] - images[1]).max() > 0.01
    with pytest.raises(ValueError, match="64-bit"), ours.seeded(pipeline, [2**64]):
        pass
    keys = torch.zeros(1, 2, dtype=torch.int64).view(torch.uint64)
    with pytest.raises(TypeError, match="keys go to scheduler.set_seeds"), ours.seeded(pipeline, keys):
        pass


def test_seeded_leaves_no_trace():
    pipeline, given = stable_diffusion_1(ours.EulerAncestralDiscreteScheduler())
    with pytest.raises(RuntimeError, match="stop"), ours.seeded(pipeline, [1, 2]):
        raise RuntimeError("stop")
    assert "prepare_latents" not in vars(pipeline)
    with pytest.raises(TypeError, match=r"seeds must be ints, got 1\.5"), ours.seeded(pipeline, [1.5]):
        pass
    with pytest.raises(ValueError, match="seeds must be one for each image"), ours.seeded(pipeline, []):
        pass
    with ours.seeded(pipeline, [1]) as generator, pytest.raises(ValueError, match="batch size of 2"):
        pipeline(generator=generator, **given(2))


def test_a_saved_pipeline_loads_without_pyfold(tmp_path):
    pipeline, _ = stable_diffusion_1(ours.EulerAncestralDiscreteScheduler())
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerAncestralDiscreteScheduler"]
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, tokenizer=None)
    assert type(loaded.scheduler) is diffusers.EulerAncestralDiscreteScheduler
    assert type(pickle.loads(pickle.dumps(pipeline.scheduler))) is ours.EulerAncestralDiscreteScheduler
    assert type(copy.deepcopy(pipeline.scheduler)) is ours.EulerAncestralDiscreteScheduler
