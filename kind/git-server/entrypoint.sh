#!/bin/sh
# Makes the repository on first start, refreshes its settings and hook on each, then serves.
set -eu
repository=/srv/git/lab.git
export HOME=/tmp
[ -d "$repository" ] || git init -q --bare -b main "$repository"
git -C "$repository" config http.receivepack true
# Nobody's commits are ever pushed over.
git -C "$repository" config receive.denyNonFastForwards true
# Every source is a shallow clone, whose deltas would be searched anew each time: that is half of its time, for a tenth
# of its size. On a network inside one machine size is nothing.
git -C "$repository" config pack.window 0
git -C "$repository" config core.hooksPath /usr/local/share/git-hooks
exec lighttpd -D -f /etc/lighttpd-git.conf
