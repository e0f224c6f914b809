#!/bin/sh
# What every task learns from clean pictures. Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=learning "$@"; }

curve='task.curve=[0.5,1.0,2.0]'
study task=dreambooth,dreambooth_lora,textual_inversion $curve data.subject=105,106,107 "$@"
study task=style_finetune,style_lora $curve data.style=2,3,4 "$@"
study task=ddpm task.dtype=bf16 'task.curve=[0.5,1.0]' seed=0,1 "$@"

# Which DreamBooth preset: development subjects
development="task=dreambooth data.subject=range(10,22)"
choose() { study $development runtime.records=experiments/learning/development "$@"; }
choose task.guidance=2.0,1.0 "$@"
choose data.train=12 "$@"
choose task.lr=5e-5 "$@"
study $development $curve runtime.records=experiments/learning/length "$@"  # its length
