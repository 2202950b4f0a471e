"""Operations this server has beside the RESTful interactions: OperationDefinitions and where each is served."""
