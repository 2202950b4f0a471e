"""From received bytes to stored resources: inbox, pipeline, worker."""
