#!/bin/sh
# Every attack against six kinds of pictures. Resumable: the same command again goes on where it stopped.
# Further words go to every part: data.subject=110 for one subject, runtime.device=cuda for a GPU.
# Beside each part: its victims a subject. One takes about 1.4 minutes of a core with its pictures and scores, an attack has six: all parts take
# about six hours a subject.
set -euf
python="${PYTHON:-python}"
study() { "$python" -m udpbench -m experiment=attacks "$@"; }

protections=none,noise,aspl,photoguard,eudp,metacloak

# What a purifier has to beat: 24 victims, and the protections.
study attack=none,jpeg,compress_resize,resize protect=$protections "$@"
study protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@" # the seed SD: 2
# An owner who expects JPEG, against it and two others: 6.
study attack=none,jpeg,blur,impress protect=eot protect@inner=aspl 'protect.transforms=[none,jpeg]' "$@"
# Purifiers with a model, the quickest first: 48.
study attack=impress,diffpure,pdm_pure,sdedit,vae_roundtrip,ddspure,impress_pp,gridpure protect=$protections "$@"
# What of IMPRESS++ is its negative prompt: 2.
study attack=impress_pp "attack.negative_prompt=''" protect=none,aspl "$@"
# Attacks in the training: 12, of which six take twice as long (cat trains an autoencoder).
study attack=cat,robust_augment protect=$protections "$@"
# Purifiers with a model that take minutes: 12.
study attack=insight,udap protect=$protections "$@"
# A thief with the owner's tool, who learns from pictures of another subject that he had protected: 10.
leak=outputs/attacks_leak
"$python" -m experiments.attacks.leak $leak/clean
for protect in noise aspl photoguard eudp metacloak; do
  "$python" -m udpbench protect $leak/clean $leak/$protect protect=$protect
  study attack=bridge attack.clean=$leak/clean attack.protected=$leak/$protect protect=$protect "$@"
done
# Other filters: 48.
study attack=blur,gaussian_noise,adverse_cleaner,tvm,median_blur,screen_camera,crop_resize,webp protect=$protections "$@"
# Variants: 48.
study attack=diffpure_sde,sdedit_denoise,best_of,quantize,quantize_palette,grayscale,tone_curve,rotate_crop_erase protect=$protections "$@"
# With the embedded upscaler, and the resize alone: 18.
study attack=super_resolution,noisy_upscale protect=$protections "$@"
study attack=resize attack.scale=0.25 protect=$protections "$@"
# EUDP's preset before, against all of them (eudp_sqrt_alpha_bar in the tables): 37.
before='protect=eudp protect.times=sqrt_alpha_bar'
study $before attack=none,jpeg,compress_resize,resize,impress,diffpure,pdm_pure,sdedit,vae_roundtrip,ddspure,impress_pp,gridpure "$@"
study $before attack=cat,robust_augment,insight,udap,blur,gaussian_noise,adverse_cleaner,tvm,median_blur,screen_camera,crop_resize,webp "$@"
study $before attack=diffpure_sde,sdedit_denoise,best_of,quantize,quantize_palette,grayscale,tone_curve,rotate_crop_erase "$@"
study $before attack=super_resolution,noisy_upscale "$@"
study $before attack=resize attack.scale=0.25 "$@"
"$python" -m udpbench protect $leak/clean $leak/eudp_sqrt_alpha_bar $before
study $before attack=bridge attack.clean=$leak/clean attack.protected=$leak/eudp_sqrt_alpha_bar "$@"
