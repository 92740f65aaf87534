"""The networks, diffusion and degradation of UPSR x4 (arXiv 2503.18512), trained as we would.

    python -m upsr_jax.main --config configs/realsr_x4.py --workdir runs/realsr_x4 \
        --config.pretrained.estimator=runs/estimator_x4/model

Cost: the denoiser takes 127 GFLOP a call at 64x64 low-resolution pixels, three times that with its
backward pass, beside the estimator and LPIPS; 32 images a step, 200,000 steps. The paper's authors
advise to pick a checkpoint near step 140,000 to 150,000: later ones gain full-reference and lose
no-reference scores.

How this differs from the released training, which `released_x4.py` holds, and why:

- LPIPS is fed images in the range that it was made for. Its gradient then has a cosine of 0.54 with
  the released one: it is another loss, and the weight of 0.5 was not chosen for it.
- LPIPS is computed in float32, where the release had float16, and the networks in bfloat16 in place
  of float16, which needs no scaled loss.
- Every image draws its own degradation. The release drew resize factors, ways of resizing and
  branches once for a batch, which suits code that degrades whole batches, and mixed batches in a
  pool of 160 pairs to hide it.
- JPEG is libjpeg's, as photos have it, not a simulation.
- The rate warms up to 1e-4, not to 0.9998e-4, where the released warm-up ends.
"""

from ml_collections import ConfigDict

from configs.degradations import real_esrgan


def get_config() -> ConfigDict:
    """Return the setting; other configs start from it and override."""
    return ConfigDict(
        dict(
            network="denoiser",  # the one that is trained; "estimator" trains the estimator
            seed=0,
            dtype="bfloat16",  # of the networks' arithmetic; parameters are float32
            model=dict(
                width=160,
                multipliers=(1, 2, 2, 4),
                num_res_blocks=(2, 2, 2, 2),
                swin_depth=2,
                swin_embed_dim=192,
                swin_head_dim=32,
                mlp_ratio=4,
                window_size=8,
                head_width=128,
                nominal_size=64,
                shift_mask="released",
                residual=False,
            ),
            estimator=dict(
                embed_dim=96,
                depths=(6, 6, 6, 6),
                num_heads=4,
                window_size=16,
                category_size=128,
                num_tokens=64,
                reduced_dim=8,
                convffn_kernel_size=7,
                mlp_ratio=1,
            ),
            diffusion=dict(steps=5, kappa=2.5, power=0.2, min_noise_level=0.2, end=0.99),
            prior=dict(
                un=0.1,  # the paper's psi_max; 0 weighs no noise
                min_noise=0.4,  # and b_u
                estimate="network",  # or "bicubic", which needs no estimator
                condition="estimate",  # or "bicubic", in place of the estimate
            ),
            # Fewer steps than the diffusion's are those that the released code keeps; or "last", to
            # keep the last, from which training had sampling start.
            sampler=dict(method="ddim", steps=5, spacing="released"),
            degradation=real_esrgan(),
            data=dict(
                # Folders of photographs, searched throughout, or of packed ones
                # (scripts/prepare_imagenet.py), "tfds:imagenet2012/train", or else
                folders=("data/imagenet/train",),
                weights=(),  # of the folders, by which they are drawn; (): by their sizes
                pairs=(),  # a folder of ground truth and one of low-resolution images
                batch_size=32,  # of all hosts together
                crop_size=256,
                scale=(1.0, 1.0),  # photographs are shrunk by a factor in between, then cropped
                rotation=0.0,  # degrees by which half of the crops are turned at most, either way
                use_sharp=False,  # sharpens the crops, and so the ground truth, first
                pool=0,  # pairs in which batches are mixed that draw much for all of a batch
                num_threads=16,
                num_workers=0,  # processes; 0: `num_threads` threads of this one
                max_bad_fraction=0.01,
                degrade_on="host",  # or "device", with simulated_jpeg: for GPUs with few CPU cores
            ),
            pretrained=dict(  # model folders to start from
                estimator="",
                denoiser="",
                teacher="",  # of several steps, for `sampler.method` "one_step"; see `distil_x4`
                strict=True,  # False: of the network that learns, whatever arrays fit are taken
            ),
            loss=dict(
                lpips_weight=0.5,
                # "bfloat16" and "float16" (the released one) are faster on GPUs, and their gradient
                # is another by 26% and by 10%.
                lpips_dtype="float32",
                lpips_jitter=False,  # moves both images of LPIPS by 0 or 1 pixel along each axis
                released_lpips_range=False,
                ssim_weight=0.0,  # of 1 - SSIM of luma
                consistency_weight=0.0,  # of both ways of a teacher's map, see `distil_x4`
            ),
            schedule=dict(
                learning_rate=1e-4,
                warmup_steps=5000,
                decay_steps=0,  # the end of a cosine, which falls to the final rate; 0: none
                final_learning_rate=0.0,
                restarts=(),  # steps where the cosine begins again
                milestones=(),  # or else, without a cosine, steps where the rate
                gamma=0.5,  # is multiplied by this
            ),
            optimizer=dict(b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=0.0, muon=False),
            mesh=dict(data=-1, fsdp=1),  # of training; -1: all devices. fsdp > 1 splits the state
            train=dict(
                steps=200_000,
                microbatches=1,  # parts of a batch computed one after the other, to save memory
                remat="none",  # "selective" or "full": compute again what memory can't hold
                ema_decay=0.999,
                log_every=100,
                checkpoint_every=5000,
                keep_checkpoints=3,  # the last ones,
                keep_every=5000,  # each whose step is a multiple of it (0: none),
                # and the best by a metric of evaluation ("": none), of a named set
                # "realsr/lpips_alex", or by a mix, "lpips_alex=1,psnr_y=0.02"
                keep_best="lpips_vgg",
                eval_every=5000,  # 0: never
                pyiqa_every=1,  # so many evaluations, one measures config.eval.pyiqa
                max_bad_steps=10,  # so many in a row, of no finite loss or gradient, are skipped
                # What may be other than in the checkpoints: "schedule", "optimizer.clip_norm",
                # "optimizer.weight_decay" or "loss.lpips_dtype".
                allow_changes=(),
            ),
            eval=dict(
                model="",  # a model folder; empty: that of the last checkpoint in the workdir
                gt="data/imagenet_test/gt",
                lr="data/imagenet_test/lq",  # empty: gt degraded by `degradation`
                source="name folders of images in config.eval.gt and config.eval.lr",  # if missing
                crop_size=256,  # of gt, where lr is empty
                max_images=100,
                pictures=4,
                seed=0,
                metrics=("psnr_y", "ssim_y", "lpips_vgg", "lpips_alex"),  # or "niqe"
                pyiqa=(),  # in training also metrics of an installed pyiqa: ("clipiqa", "musiq")
                per_device_batch=1,
                # As the released test ran; or "bfloat16", or "auto": float32 on CPUs alone.
                precision="float32",
                # The released test: larger images are cut in tiles, averaged where they overlap,
                tile=512,
                overlap=64,
                blend="mean",  # or "feather"
                noise_by_name=True,  # and each has noise of its own, not one field for all
                fidelity=0.0,  # share of the estimate in the result
                # In training, in place of gt and lr: sets by name, each with what is other than
                # above, as dict(realsr=dict(gt="data/realsr/gt", lr="data/realsr/lq"))
                sets=dict(),
            ),
            # Weights & Biases: "online", or "offline" to send later (needs the extra `wandb`)
            wandb=dict(mode="", project="upsr_jax"),
        )
    )
