//! Buckets, and the questions about them and about objects whose answer is the same for all.

use super::{Call, check_version, page_limit};
use crate::attributes::timestamp;
use crate::errors::{from_store, refuse};
use crate::token;
use s3s::dto::*;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

/// The region whose buckets have no location constraint, as in AWS.
const UNNAMED_REGION: &str = "us-east-1";

pub(super) async fn list_buckets(
    call: &Call<'_>,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let input = request.input;
    let limit = match input.max_buckets {
        None => usize::MAX,
        Some(limit) if (1..=10_000).contains(&limit) => limit as usize,
        Some(_) => {
            return Err(refuse(
                S3ErrorCode::InvalidArgument,
                "Argument max-buckets must be an integer between 1 and 10000",
            ));
        }
    };
    let after = continued(input.continuation_token.as_deref())?;
    let region = &call.shared.config.region;
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let all_regions = input.bucket_region.as_ref().is_none_or(|wanted| wanted == region);
    let mut buckets = call.shared.store.buckets(call.tenant()).await.map_err(from_store)?;
    buckets.retain(|bucket| {
        all_regions && bucket.name.starts_with(prefix) && after.as_ref().is_none_or(|after| bucket.name > *after)
    });
    let continuation_token =
        (buckets.len() > limit).then(|| token::encode(buckets.get(limit - 1).map_or("", |bucket| &bucket.name)));
    let buckets = buckets
        .into_iter()
        .take(limit)
        .map(|bucket| Bucket {
            name: Some(bucket.name),
            creation_date: Some(timestamp(bucket.created_unix_ms)),
            ..Bucket::default()
        })
        .collect();
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(buckets),
        continuation_token,
        owner: Some(call.owner()),
        prefix: input.prefix,
    }))
}

pub(super) async fn create_bucket(
    call: &Call<'_>,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let input = request.input;
    if let Some(configuration) = &input.create_bucket_configuration {
        if configuration.bucket.is_some() || configuration.location.is_some() || configuration.tags.is_some() {
            return Err(refuse(S3ErrorCode::NotImplemented, "Only LocationConstraint is implemented here."));
        }
        let region = &call.shared.config.region;
        if let Some(constraint) = &configuration.location_constraint
            && constraint.as_str() != region
        {
            return Err(refuse(
                S3ErrorCode::IllegalLocationConstraintException,
                format!("The specified location constraint is not valid: this is {region}."),
            ));
        }
    }
    let bucket = call.shared.store.create_bucket(call.tenant(), &input.bucket).await.map_err(from_store)?;
    let location = Some(format!("/{}", bucket.name));
    Ok(S3Response::new(CreateBucketOutput { location, ..CreateBucketOutput::default() }))
}

pub(super) async fn head_bucket(
    call: &Call<'_>,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    check_bucket(call, &request.input.bucket).await?;
    let bucket_region = Some(call.shared.config.region.clone());
    Ok(S3Response::new(HeadBucketOutput { bucket_region, ..HeadBucketOutput::default() }))
}

pub(super) async fn delete_bucket(
    call: &Call<'_>,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    call.shared.store.delete_bucket(call.tenant(), &request.input.bucket).await.map_err(from_store)?;
    Ok(S3Response::with_status(DeleteBucketOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) async fn get_bucket_location(
    call: &Call<'_>,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    check_bucket(call, &request.input.bucket).await?;
    let region = &call.shared.config.region;
    let location_constraint = (region != UNNAMED_REGION).then(|| BucketLocationConstraint::from(region.clone()));
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
}

pub(super) async fn get_bucket_versioning(
    call: &Call<'_>,
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    check_bucket(call, &request.input.bucket).await?;
    Ok(S3Response::new(GetBucketVersioningOutput::default()))
}

pub(super) async fn get_bucket_acl(
    call: &Call<'_>,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    check_bucket(call, &request.input.bucket).await?;
    Ok(S3Response::new(GetBucketAclOutput { grants: Some(vec![full_control(call)]), owner: Some(call.owner()) }))
}

pub(super) async fn get_object_acl(
    call: &Call<'_>,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    call.shared.store.head(call.tenant(), &input.bucket, &input.key).await.map_err(from_store)?;
    Ok(S3Response::new(GetObjectAclOutput {
        grants: Some(vec![full_control(call)]),
        owner: Some(call.owner()),
        ..GetObjectAclOutput::default()
    }))
}

/// No object has tags, since putting some is refused; clients that copy objects ask first.
pub(super) async fn get_object_tagging(
    call: &Call<'_>,
    request: S3Request<GetObjectTaggingInput>,
) -> S3Result<S3Response<GetObjectTaggingOutput>> {
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    call.shared.store.head(call.tenant(), &input.bucket, &input.key).await.map_err(from_store)?;
    Ok(S3Response::new(GetObjectTaggingOutput { tag_set: TagSet::new(), version_id: None }))
}

/// What a token of a listing goes on behind.
pub(super) fn continued(continuation_token: Option<&str>) -> S3Result<Option<String>> {
    // An empty one, which some clients send with the first request, asks for the first page.
    continuation_token
        .filter(|text| !text.is_empty())
        .map(|text| {
            token::decode(text)
                .ok_or_else(|| refuse(S3ErrorCode::InvalidArgument, "The continuation token provided is incorrect"))
        })
        .transpose()
}

/// The limit of a page that may be absent.
pub(super) fn max_keys(stated: Option<i32>) -> S3Result<usize> {
    page_limit(stated, "max-keys")
}

async fn check_bucket(call: &Call<'_>, name: &str) -> S3Result<()> {
    call.shared.store.bucket(call.tenant(), name).await.map(drop).map_err(from_store)
}

fn full_control(call: &Call<'_>) -> Grant {
    let owner = call.owner();
    Grant {
        grantee: Some(Grantee {
            display_name: owner.display_name,
            id: owner.id,
            email_address: None,
            type_: Type::from_static(Type::CANONICAL_USER),
            uri: None,
        }),
        permission: Some(Permission::from_static(Permission::FULL_CONTROL)),
    }
}
