# Registry mode: the same server on Alpine, pinned by digest.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apk add --no-cache git git-daemon lighttpd perl
COPY --chown=1001:1001 srv-git/ /srv/git/
COPY lighttpd.conf /etc/lighttpd-git.conf
COPY post-receive /usr/local/share/git-hooks/post-receive
COPY entrypoint.sh git-http-backend pack-objects /usr/local/lib/
USER 1001:1001
VOLUME /srv/git
ENTRYPOINT ["/usr/local/lib/entrypoint.sh"]
