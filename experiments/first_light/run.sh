#!/bin/sh
# Does EUDP protect, and do IMPRESS and JPEG undo it? Resumable: the same command again goes on where it stopped.
# Further words go to every part, e.g. runtime.device=cuda 'data.subject=range(105,125)'.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=first_light "$@"; }

study protect=eudp attack=none,impress,jpeg "$@"                                   # at 8/255: the question
study protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@"                    # the seed SD
study protect=udp attack=none,impress,jpeg 'arms=[pretrained,upper_bound,clean,protected,purified,clean_attacked]' "$@"
study protect=eudp budget.eps=4,16 'arms=[pretrained,upper_bound,clean,noise,protected]' "$@"  # 16: a stress row, visible
study protect=noise,noise_rms attack=none,impress,jpeg 'arms=[pretrained,upper_bound,clean,protected,purified,clean_attacked]' "$@"
