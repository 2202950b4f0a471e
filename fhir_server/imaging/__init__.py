"""Images: what modalities and picture archives send or are asked for becomes study packages in the inbox."""
