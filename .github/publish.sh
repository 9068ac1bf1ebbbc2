#!/usr/bin/env bash
# publish.sh branch main    the site at the root, editions kept
# publish.sh tag v0.1.0     a copy under v0.1.0/, never written again
set -eu
kind=$1
name=$2
site=$PWD/_build/html
served=$(mktemp -d)

if git fetch --depth 1 origin gh-pages; then
  git worktree add "$served" FETCH_HEAD
else
  git worktree add --detach "$served"
  git -C "$served" rm -rq .
fi

if [ "$kind" = tag ]; then
  if [ -e "$served/$name" ]; then
    echo "Edition $name is published already; an edition is never changed."
    exit 1
  fi
  target=$served/$name
  mkdir "$target"
else
  target=$served
  git -C "$served" ls-files | grep -vE '^v[0-9][^/]*/' | (cd "$served" && xargs -r -d '\n' rm -f)
fi
cp -R "$site/." "$target/"
touch "$served/.nojekyll"

cd "$served"
git add --all
if git diff --cached --quiet; then
  echo "Nothing changed."
  exit 0
fi
git -c user.name="The book" -c user.email="book@users.noreply.github.com" commit -q -m "Site of $kind $name"
git push -q origin HEAD:refs/heads/gh-pages
