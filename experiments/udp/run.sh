#!/bin/sh
# What UDP and EUDP claim, at toy scale. Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=udp "$@"; }

curve='task.curve=[0.5,1.0,2.0]'
objects='task=dreambooth data.subject=105,106,107,108,109'
styles='task=style_finetune data.style=2,3,4,5,6'
scratch='task=ddpm task.curve=[0.5,1.0]'
first='task.dtype=bf16 protect.dtype=bf16 protect.model_steps=200 protect.image_steps=10'  # a third of the victim's steps, 50 image gradients
times='protect.times=sqrt_alpha_bar'  # EUDP's preset when the settings were frozen
floor='protect=none seed=1,2 arms=[pretrained,upper_bound,clean]'  # how much clean victims differ from seed to seed

study $objects $curve protect=udp "$@"                                           # fine-tuning on objects
study $objects $curve protect=eudp $times "$@"
study $objects $curve $floor "$@"
study $styles $curve protect=udp "$@"                                            # fine-tuning on styles
study $styles $curve protect=eudp $times "$@"
study $styles $curve $floor "$@"
for protect in udp "eudp $times"; do                                               # training from scratch, first study:
    study $scratch $first protect=$protect seed=0,1 "$@"                            # all protected
    study $scratch $first protect=$protect seed=0,1 protected_fraction=0.8,0.5 "$@" # and a fraction of them
done
for draw in 2 3 4; do                                                               # once more, when settings are chosen
    study $scratch data.draw=$draw seed=$draw protect=udp,eudp runtime.records=experiments/udp/scratch "$@"
done
study $objects $curve protect=eudp protect.times=alpha_bar,snr "$@"              # which p(t); uniform is UDP
