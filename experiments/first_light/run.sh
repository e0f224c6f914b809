#!/bin/sh
# Does EUDP protect, and does JPEG undo it? Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda 'data.subject=range(105,125)'.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=first_light "$@"; }

eudp='protect=eudp protect.times=sqrt_alpha_bar'  # EUDP's preset when the settings were frozen

study $eudp attack=none,jpeg "$@"                                                  # at 8/255: the question
study protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@"                    # the seed SD
study protect=udp attack=none,jpeg 'arms=[pretrained,upper_bound,clean,protected,purified,clean_attacked]' "$@"
study $eudp budget.eps=4,16 'arms=[pretrained,upper_bound,clean,noise,protected]' "$@"  # 16: a stress row, visible
study protect=noise,noise_rms attack=none,jpeg 'arms=[pretrained,upper_bound,clean,protected,purified,clean_attacked]' "$@"
