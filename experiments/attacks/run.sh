#!/bin/sh
# Every attack against six kinds of pictures. Resumable: the same command again goes on where it stopped.
# Further words go to every part: data.subject=110 for one subject, runtime.device=cuda for a GPU.
# A victim with its pictures and scores takes 1.5 minutes of a core, and an attack has six of them a subject.
set -euf
python="${PYTHON:-python}"
study() { "$python" -m udpbench -m experiment=attacks "$@"; }

protections=none,noise,aspl,photoguard,eudp,metacloak

# Cheap attacks that every purifier has to beat: with what all parts share 45 minutes of a core for a subject.
study attack=none,jpeg,compress_resize,resize protect=$protections "$@"
# An owner who expects JPEG, against it and two others: 15 minutes.
study attack=none,jpeg,blur,impress protect=eot protect@inner=aspl 'protect.transforms=[none,jpeg]' "$@"
# Purifiers with models, the quickest first: two hours.
study attack=impress,vae_roundtrip,sdedit,diffpure,pdm_pure,ddspure protect=$protections "$@"
study attack=impress_pp,diffpure_sde,gridpure,sdedit_denoise,best_of,insight,udap protect=$protections "$@"
# In the training: 20 minutes.
study attack=cat,robust_augment protect=$protections "$@"
# Other filters: two hours.
study attack=blur,gaussian_noise,adverse_cleaner,tvm,median_blur,screen_camera,crop_resize protect=$protections "$@"
study attack=webp,quantize,quantize_palette,grayscale,tone_curve,rotate_crop_erase protect=$protections "$@"
# A thief with the owner's tool, who learns from pictures of another subject that he had protected: 20 minutes.
leak=outputs/attacks_leak
"$python" -m experiments.attacks.leak $leak/clean
for protect in noise aspl photoguard eudp metacloak; do
  "$python" -m udpbench protect $leak/clean $leak/$protect protect=$protect
  study attack=bridge attack.clean=$leak/clean attack.protected=$leak/$protect protect=$protect "$@"
done
