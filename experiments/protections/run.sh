#!/bin/sh
# Every protection of the benchmark, in one unit. Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda 'data.subject=range(110,130)'.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=protections "$@"; }

noising=advdm,udp,eudp,fsmg,aspl,ensemble_fsmg,ensemble_aspl,simac,simac_paper,metacloak,caat,pap,disdiff,anti_diffusion,sds
latent=photoguard,mist,mist_v2,ace,ace_plus,glaze,pid,blurguard
editing=photoguard_diffusion,advpaint,dia
other=uemask,dct_shield,hf_adb,dia_r,diffusionguard,promptflare,diffvax  # leave budget unused, or have bounds of their own
methods=$noising,$latent,$editing,$other

study protect=$noising,$latent,$editing "$@"                        # at 8/255
study protect=$other 'arms=[pretrained,upper_bound,clean,noise,noise_rms,protected]' "$@"  # beside noise that is as strong, too
study protect=noise budget.eps=2,4,6,12,16 "$@"                    # noise at other strengths: the line that a method has to leave
study protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@" # the seed SD
study protect=$methods,noise attack=jpeg "$@"
study protect=$methods,noise attack=impress "$@"
study protect=$methods budget=perceptual 'arms=[pretrained,upper_bound,clean,noise,noise_rms,protected]' "$@" # equally visible

# Of some methods more: eight on further subjects, EUDP's preset before, what is hard to see within twice the bound, the thief's own prompt.
study protect=eudp,simac,mist,advdm,udp,aspl,photoguard,glaze data.subject=113,114,115 "$@"
before='protect=eudp protect.times=sqrt_alpha_bar'
study $before data.subject=110,111,112,113,114,115 "$@"
study $before attack=jpeg,impress data.subject=110 "$@"
study $before budget=perceptual data.subject=110 'arms=[pretrained,upper_bound,clean,noise,noise_rms,protected]' "$@"
study protect=ace,photoguard,photoguard_diffusion,advpaint budget=perceptual budget.inner.eps=32 data.subject=111 'arms=[pretrained,upper_bound,clean,noise,protected]' "$@"
study protect=aspl owner_prompt=data runtime.records=experiments/protections/checks "$@"

# With the numbers of the released codes, each at its own budget (NAME:EPS, of 255). Too dear, or not for this model: those of metacloak, diffvax,
# glaze and promptflare.
released="mist:16 advdm:16 sds:16 ace_plus:4 ace:4 mist_v2:4 caat:6.4 pap:6.4 anti_diffusion:7.65 pid:12.75 photoguard:7.65 blurguard:16 dct_shield:8 uemask:19.2
  dia:6.4 dia_r:6.4 diffusionguard:8 advpaint:7.65"
further_clean="aspl:6.4 fsmg:6.4 simac:8 disdiff:6.4 ensemble_aspl:6.4 ensemble_fsmg:6.4 hf_adb:63.75"
as_released() { # NAME:EPS, and further words
  preset=${1%:*}_released eps=${1#*:}; shift
  study protect=$preset budget.eps=$eps 'arms=[pretrained,upper_bound,clean,noise,protected]' runtime.records=experiments/protections/released "$@"
}
for each in $released; do as_released $each "$@"; done
for each in $further_clean; do as_released $each data.extra_clean=12 "$@"; done
