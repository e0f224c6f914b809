#!/bin/sh
# What IMPRESS claims, at toy scale. Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=impress "$@"; }

styles='task=style_finetune task.curve=[0.5,1.0,2.0] data.style=2,3,4,5,6'
strong='budget.eps=16 protect.distance_budget=0.4'  # chosen on development styles 0 and 1, once 8/255 had shown nothing
earlier='attack=impress attack.lr=0.3 attack.iterations=100'  # IMPRESS's preset when styles were run
edits='task=img2img,inpaint data.train=12 data.subject=105,106,107,108,109'

study $styles protect=glaze attack=none "$@"                                                # style mimicry
study $styles protect=glaze $earlier "$@"
study $styles $strong protect=glaze attack=none "$@"                                        # at a budget at which Glaze has an effect
study $styles $strong protect=glaze $earlier "$@"
study $styles protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@"                     # how much seeds differ
study $edits protect=photoguard,photoguard_diffusion attack=none,impress,gaussian_noise,resize "$@"   # malicious edits
study $edits protect=photoguard attack=jpeg attack.quality=15 "$@"
# 1000 was chosen on development subject 0 among 300 to 10000: the least at which pictures are as consistent as the clean ones.
study $edits protect=consistent protect@inner=photoguard protect.beta=1000 attack=none,impress "$@"

# Not yet run, on styles: the other baselines, and the owner who expects IMPRESS.
# study $styles protect=glaze attack=gaussian_noise,resize
# study $styles $strong protect=glaze attack=gaussian_noise,resize
# study $styles protect=glaze attack=jpeg attack.quality=15
# study $styles $strong protect=glaze attack=jpeg attack.quality=15
# study $styles protect=consistent protect@inner=glaze attack=none,impress
