use super::*;

fn files(dir: &Path, credentials: &str, config: &str, name: Option<&str>) -> ProfileFiles {
    std::fs::create_dir_all(dir.join(".aws")).unwrap();
    std::fs::write(dir.join(".aws/credentials"), credentials).unwrap();
    std::fs::write(dir.join(".aws/config"), config).unwrap();
    let env: Env = [("HOME", dir.to_str().unwrap())].into_iter().collect();
    ProfileFiles::locate(&env, name)
}

fn read(credentials: &str, config: &str, name: Option<&str>) -> Result<Profile, ProfileError> {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), credentials, config, name).read()
}

fn keys(id: &str, secret: &str, token: Option<&str>) -> Option<Keys> {
    Some(Keys { id: id.into(), secret: secret.into(), token: token.map(str::to_owned) })
}

#[test]
fn comments_spaces_and_nested_settings_are_read_as_the_aws_tools_do() {
    let text = "\u{feff}# top\n; top\n[default]\nregion=eu-west-1 # why\r\n a = ignored # nested below region\n\
                [ profile   dev ]\nAWS_ACCESS_KEY_ID = id#not-a-comment\nsecret=a=b\n\
                [services x]\ns3 =\n  endpoint_url = http://h:1 ; note\n  addressing_style = path\nsqs=\n\tendpoint_url = http://no\n";
    let sections = parse(text).unwrap();
    assert_eq!(sections["default"]["region"], "eu-west-1");
    assert_eq!(sections["default"]["region.a"], "ignored");
    assert_eq!(sections["profile dev"]["aws_access_key_id"], "id#not-a-comment");
    assert_eq!(sections["profile dev"]["secret"], "a=b");
    assert_eq!(sections["services x"]["s3.endpoint_url"], "http://h:1");
    assert_eq!(sections["services x"]["sqs.endpoint_url"], "http://no");
}

#[test]
fn mistakes_are_told_with_their_line() {
    assert_eq!(parse("a=b\n"), Err((1, "a setting before the first [section]")));
    assert_eq!(parse("[x]\n\n[y\n"), Err((3, "a '[' without its ']'")));
    assert_eq!(parse("[x]\nnonsense\n"), Err((2, "neither a [section] nor a setting")));
    let error = read("[default]\nnonsense", "", None).unwrap_err().to_string();
    assert!(error.ends_with("credentials line 2: neither a [section] nor a setting"), "{error}");
}

#[test]
fn the_credentials_file_wins_over_the_config_file() {
    let config = "[profile dev]\nregion = eu-west-1\naws_access_key_id = old\naws_secret_access_key = old\nendpoint_url = http://h\n[default]\nregion=x";
    let profile = read("[dev]\naws_access_key_id = id\naws_secret_access_key = s\naws_session_token = t\n", config, Some("dev")).unwrap();
    assert_eq!(profile.keys, keys("id", "s", Some("t")));
    assert_eq!((profile.region.as_deref(), profile.endpoint.as_deref()), (Some("eu-west-1"), Some("http://h")));
    assert_eq!(profile.unsupported, None);
    assert_eq!(read("", config, None).unwrap().region.as_deref(), Some("x"));
    // A bare [dev] is no profile in the config file.
    assert!(matches!(read("", "[dev]\nregion=x", Some("dev")), Err(ProfileError::Missing { .. })));
}

#[test]
fn endpoints_may_stand_in_a_services_section() {
    let config = "[default]\nservices = local\nendpoint_url = http://general\n[services local]\ns3 =\n  endpoint_url = http://s3\n";
    assert_eq!(read("", config, None).unwrap().endpoint.as_deref(), Some("http://s3"));
}

#[test]
fn only_a_named_profile_must_exist() {
    assert_eq!(read("", "", None).unwrap(), Profile::default());
    let error = read("", "", Some("nope")).unwrap_err().to_string();
    assert!(error.contains("\"nope\" is in none of") && error.contains(".aws/credentials") && error.contains(".aws/config"), "{error}");
}

#[test]
fn half_a_key_is_a_mistake_and_its_value_is_not_repeated() {
    let error = read("[default]\naws_access_key_id = AKIAHUSH", "", None).unwrap_err();
    assert_eq!(error.to_string(), "the AWS profile \"default\" has aws_access_key_id without aws_secret_access_key");
    let profile = read("[default]\naws_access_key_id = AKIAHUSH\naws_secret_access_key=s3cr3t", "", None).unwrap();
    assert!(!format!("{profile:?}").contains("HUSH") && !format!("{profile:?}").contains("s3cr3t"));
}

#[test]
fn sources_that_are_not_supported_are_named() {
    for (setting, config) in [
        ("credential_process", "[default]\ncredential_process = /bin/x\n"),
        ("sso_session", "[default]\nsso_session = corp\nsso_account_id = 1\n"),
        ("source_profile", "[default]\nsource_profile = base\nrole_arn = arn:aws:iam::1:role/x\n"),
        ("credential_source", "[default]\ncredential_source = Ec2InstanceMetadata\nrole_arn = arn\n"),
        ("role_arn", "[default]\naws_access_key_id = a\naws_secret_access_key = b\nrole_arn = arn\n"),
    ] {
        assert_eq!(read("", config, None).unwrap().unsupported, Some(setting), "{config}");
    }
    let keys_win = "[default]\naws_access_key_id = a\naws_secret_access_key = b\ncredential_process = /bin/x\n";
    assert_eq!(read("", keys_win, None).unwrap().unsupported, None);
}

#[test]
fn files_and_profile_follow_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("creds");
    std::fs::write(&path, "[work]\naws_access_key_id=a\naws_secret_access_key=b\n").unwrap();
    let env: Env =
        [("HOME", "/nonexistent"), ("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap()), ("AWS_PROFILE", "work")].into_iter().collect();
    assert_eq!(ProfileFiles::locate(&env, None).read().unwrap().keys, keys("a", "b", None));
    let home: Env =
        [("HOME", dir.path().to_str().unwrap()), ("AWS_SHARED_CREDENTIALS_FILE", "~/creds"), ("AWS_PROFILE", "work")].into_iter().collect();
    assert_eq!(ProfileFiles::locate(&home, None).read().unwrap().keys, keys("a", "b", None));
    assert!(ProfileFiles::locate(&home, Some("other")).read().is_err());
}
