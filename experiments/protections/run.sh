#!/bin/sh
# Every protection of the benchmark, in one unit. Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda 'data.subject=range(110,130)'.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=protections "$@"; }

noising=advdm,udp,eudp,fsmg,aspl,ensemble_fsmg,ensemble_aspl,simac,simac_paper,metacloak,caat,pap,disdiff,hf_adb,anti_diffusion,sds,uemask
latent=photoguard,mist,mist_v2,ace,ace_plus,glaze,pid,dct_shield,blurguard
editing=photoguard_diffusion,diffusionguard,advpaint,promptflare,dia,dia_r,diffvax
methods=$noising,$latent,$editing

study protect=$methods "$@"                                        # at 8/255
study protect=noise budget.eps=2,4,6,12,16 "$@"                    # noise at other strengths: the line that a method has to leave
study protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@" # the seed SD
study protect=$methods,noise attack=jpeg "$@"
study protect=$methods,noise attack=impress "$@"
study protect=$methods budget=perceptual 'arms=[pretrained,upper_bound,clean,noise,noise_rms,protected]' "$@" # equally visible
