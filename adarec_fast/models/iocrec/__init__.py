"""IOCRec, histories split into intents that are contrasted; imported part by part."""
